"""An action: written with its cause before it is done, and with its result afterwards."""
