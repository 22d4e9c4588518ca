"""SpikingJelly's nodes on the kernels of snnfast."""
