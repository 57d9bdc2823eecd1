"""The CUDA backend of `rwkv_music.ops.wkv7s`: its kernels (*.cu), their bridge to torch (bindings.cpp), and their build."""
