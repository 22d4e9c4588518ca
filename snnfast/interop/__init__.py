"""The models and modules of other packages: what they run on here. None of them is needed."""
