"""From folders of music to a prepared dataset: sources, worker processes, the prepare log and the report."""
