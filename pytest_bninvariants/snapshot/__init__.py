"""Keep the bytes of tensors, and compare them."""
