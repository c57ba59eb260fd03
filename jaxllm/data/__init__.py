"""From files and Hub data sets to batches on the device."""
