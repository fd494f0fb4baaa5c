"""The generated protobuf messages and gRPC stubs; `make proto` writes them."""
