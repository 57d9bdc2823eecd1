"""The local web page: `python -m rwkv_music play` serves it, and a model writes what its users ask for."""
