"""`massact explain`."""
