"""The CUDA backend of `rwkv_music.wkv7s`: its kernels (*.cu), their bridge to torch (bindings.cpp), and their build."""
