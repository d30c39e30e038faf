"""The path from files to prompts: the readers of rows, images and chats that all data sets share."""
