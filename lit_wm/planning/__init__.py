"""Planning: look for actions whose imagined outcome is best, in any world model that answers the contract."""
