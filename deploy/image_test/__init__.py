"""Building both images, and running every service of docker-compose.yml from root file systems, without Docker."""
