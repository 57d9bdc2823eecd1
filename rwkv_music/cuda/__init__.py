"""CUDA kernels (*.cu), their torch bindings (*_bindings.cpp), their compilation, and the capture of CUDA graphs."""
