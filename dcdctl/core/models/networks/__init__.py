"""Parts of the networks that dcdctl builds: encoders, attention, towers of layers, and what joins them."""
