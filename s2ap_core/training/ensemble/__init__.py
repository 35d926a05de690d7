"""The members of AutoAttack with the same steps and as many of them, without the passes that change no outcome."""
