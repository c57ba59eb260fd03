"""What a run is to do, as a value: fields, reading and checks."""
