"""One self-contained page of pictures: profiles, masks, sweeps."""
