"""What trained layers have learned."""
