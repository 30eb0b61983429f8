"""Finding out whether a reward is being gamed: what is measured of every epoch, and the rule that judges it."""
