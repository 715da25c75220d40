"""The service: ``gemlet serve``. Needs the extra ``serve``; README.md in this folder is the guide."""
