"""The OpenAI dialect: videos, images, models."""
