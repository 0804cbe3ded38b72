"""Fetching files: resumable HTTP, the Hugging Face Hub, and the cache that keeps each file once."""
