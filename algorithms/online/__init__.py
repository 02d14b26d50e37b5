"""Online SAC: the policies from which the bundled data sets are rolled out."""
