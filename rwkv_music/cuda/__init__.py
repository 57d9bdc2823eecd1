"""CUDA kernels (*.cu), their torch bindings (*_bindings.cpp), their build, and the capture of CUDA graphs."""
