"""Path-integral water in a few minutes: i-PI moves the beads, the daemon answers, a picture compares."""
