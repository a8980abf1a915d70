"""Object storage: places such as s3://bucket/folder, opened by obstore, asked again where they fail for a while."""
