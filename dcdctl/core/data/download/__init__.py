"""Downloads: HTTP with resume, the Hugging Face Hub, and a cache that downloads each file once."""
