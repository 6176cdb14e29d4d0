"""What vbatch sends to other machines: one HTTP client, which follows nothing and trusts no address by itself."""
