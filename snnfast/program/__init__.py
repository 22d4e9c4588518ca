"""A neuron's step as a small program: traced from PyTorch, differentiated, printed, run."""
