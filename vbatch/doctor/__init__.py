"""Say after a reboot what is wrong and why, repair what is provably ours, and tell what happened.

``CHECKS`` are all checks in causal order; ``examine`` runs them; ``catalogue`` documents every finding.
"""
