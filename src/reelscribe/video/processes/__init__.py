"""Videos read in processes of their own, so that one that crashes or hangs costs itself alone."""
