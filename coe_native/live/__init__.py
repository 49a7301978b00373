"""Count routing in a program that serves people: `attach`, and the server."""
