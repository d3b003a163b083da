"""The trusted side: seeds, inputs, oracle, comparison and the clock that decides."""
