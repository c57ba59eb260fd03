"""What a task needs beside a model: columns, labels, metrics, post-processing, reports."""
