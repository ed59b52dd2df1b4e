"""Bad inputs, numbered 1 to 109 as docs count them: each is one test that sends it to the running service."""
