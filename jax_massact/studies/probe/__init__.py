"""`massact probe`."""
