"""What the end-to-end tests are made of: namespaces, programs, waiting, clients. One idea a file."""
