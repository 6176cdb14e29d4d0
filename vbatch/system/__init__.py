"""The machine below vbatch: systemd, the units that run vbatch, and what serves a port."""
