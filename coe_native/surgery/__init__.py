"""Write models with fewer experts, and verify them."""
