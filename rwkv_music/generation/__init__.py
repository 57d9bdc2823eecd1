"""Generation with a trained model: decoding token by token, sampling, and completing pieces."""
