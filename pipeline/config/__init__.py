"""What a run is told, checked and resolved: settings → RunSpec."""
