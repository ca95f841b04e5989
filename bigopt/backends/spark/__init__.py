"""The Spark backend: Spark places and supervises resident Python workers, the channel carries the vectors.

A Spark task costs tens of milliseconds, a round far less; so tasks are not rounds here. `context` gets a classic
SparkContext (one that runs already, spark-submit's, or its own), `session` starts one long task a slot in it, and the
Python worker of each task connects back to the driver's `Hub`. Rows never pass through the JVM, nor do vectors.
"""

from bigopt.backends.spark.session import ResidentSparkSession, open_session

__all__ = ["ResidentSparkSession", "open_session"]
