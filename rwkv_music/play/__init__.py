"""The local web page that `python -m rwkv_music play` serves. On it, a model continues and fills in pieces."""
