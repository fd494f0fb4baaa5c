"""The coordinator: planning, rounds, admission, aggregation, and the gRPC services that devices call."""
