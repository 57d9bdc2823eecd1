"""RWKV-Music: trains RWKV v8 "Heron" models on MIDI with DeepSpeed, and completes pieces with them."""

__version__ = "0.1.0"
