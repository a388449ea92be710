"""Local container images of Kafka and PostgreSQL, for machines that reach no image registry; see images."""
