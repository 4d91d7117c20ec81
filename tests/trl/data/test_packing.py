from __future__ import annotations

import pytest

from compat.trl.data.packing import ConstantLengthDataset
from tests.trl.setups import parts


class TestPacking:
    @staticmethod
    def dataset(rows, **options):
        return ConstantLengthDataset(parts.tokenizer(), rows, "text", **options)

    def test_a_buffer_that_ends_with_the_data_is_the_last(self):
        rows = [{"text": "the sea is wide"}] * 4
        size = len(rows[0]["text"])
        # TRL 0.7.11 asks its tokenizer for the tokens of no text here, and ends with an error.
        packed = self.dataset(rows, seq_length=2, num_of_sequences=1, chars_per_token=size, shuffle=False)
        whole = self.dataset(rows, seq_length=2, shuffle=False)
        assert [row["input_ids"].tolist() for row in packed] == [row["input_ids"].tolist() for row in whole]
        assert packed.current_size == whole.current_size > 0

    def test_nothing_is_not_repeated_for_ever(self):
        assert list(self.dataset([], infinite=True)) == []

    def test_beginning_again_is_told(self):
        rows = iter(self.dataset([{"text": "a b c"}], infinite=True, seq_length=2, num_of_sequences=2))
        with pytest.warns(UserWarning, match="iterator is reset to the start"):
            assert len({tuple(next(rows)["input_ids"].tolist()) for _ in range(9)}) > 1

    def test_another_end_of_texts_is_told(self):
        tokenizer = parts.tokenizer()
        tokenizer.eos_token = None
        with pytest.warns(UserWarning, match="does not have an EOS token: `eos_token_id=7`"):
            dataset = ConstantLengthDataset(
                tokenizer, [{"text": "a"}], "text", eos_token_id=7, seq_length=2, shuffle=False
            )
        assert next(iter(dataset))["input_ids"].tolist()[-1] == 7

    def test_a_function_of_two_is_told(self):
        with pytest.warns(UserWarning, match="formatting_func has more than one argument"):
            self.dataset([], formatting_func=lambda row, other: row)
