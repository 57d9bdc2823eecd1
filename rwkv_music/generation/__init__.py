"""Generation with a trained model: decoding token by token, sampling, completing pieces and filling in cells."""
