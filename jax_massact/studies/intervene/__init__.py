"""`massact intervene`."""
