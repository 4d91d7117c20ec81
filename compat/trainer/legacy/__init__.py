"""Methods, parameters and arguments of transformers releases other than the installed one."""
