"""Alliance encoders in the tools of others; each module here needs the package that it is named for, and is imported on use."""
